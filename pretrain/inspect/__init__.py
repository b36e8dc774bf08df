"""What a run is made of, shown to a person."""

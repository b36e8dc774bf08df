"""How likely a model finds what tasks ask for."""

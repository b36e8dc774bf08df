"""A checkpoint as a folder that Hugging Face's libraries load."""

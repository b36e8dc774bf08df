"""Models in the form of Hugging Face's libraries: what is written for them, and what is read of them."""

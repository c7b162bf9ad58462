"""Find the folder or file of the model that a plan names: a local one, or one of the Hugging Face hub."""

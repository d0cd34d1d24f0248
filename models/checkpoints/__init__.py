"""Reading checkpoints: Hugging Face folders and hub ids, timm and SWAG state dicts, our own format."""

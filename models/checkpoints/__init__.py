"""Reading checkpoints: Hugging Face, timm, SWAG and our own format."""

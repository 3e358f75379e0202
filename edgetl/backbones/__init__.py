"""What is transferred: pretrained backbones, their pixel range and where their weights come from."""

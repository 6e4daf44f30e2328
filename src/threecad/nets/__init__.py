"""Parts of networks that two or more methods share, and where pretrained weights come from."""

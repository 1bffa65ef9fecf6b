"""How the folders of each dataset are laid out."""

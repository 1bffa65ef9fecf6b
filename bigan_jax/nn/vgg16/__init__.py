"""VGG16: the network, its weights, and the file formats they come in."""

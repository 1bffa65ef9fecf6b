"""Image files, archives and folders, read without trust in their content."""

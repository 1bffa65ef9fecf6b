"""From a folder, an archive or the phantom to arrays, split without leaks and audited."""

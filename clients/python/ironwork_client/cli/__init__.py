"""The `ironwork` command."""

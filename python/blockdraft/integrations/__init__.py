"""blockdraft within other stacks. Nothing here is imported before it is asked for, and a stack only
within the `register()` of its module."""

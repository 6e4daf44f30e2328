"""Image sets on disk: the folder tree, the published sets, their checks and numbers, and how they are loaded."""

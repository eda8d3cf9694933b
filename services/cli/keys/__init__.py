"""`llmmesh keys`: who may ask the mesh."""

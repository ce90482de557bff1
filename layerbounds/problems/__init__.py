"""Problems: the sets of weights that are allowed, and layers to which they apply."""

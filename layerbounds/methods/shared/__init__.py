"""Methods that choose units of inputs which several output channels keep or drop together."""

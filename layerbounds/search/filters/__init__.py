"""The choice of whole output channels."""

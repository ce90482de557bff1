"""What capture warns with; importable without PyTorch."""


class CaptureWarning(UserWarning):
    """Something was left out of a capture, or is not what one might expect."""

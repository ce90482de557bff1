"""An independent checker of the certificates of layerbounds: NumPy, numba and the standard library, nothing else.

``python -m layerbounds_verify FILE`` prints what holds; `verify` returns it. docs/certificates.md has the format of the
files and the proofs of what is done here.
"""

from layerbounds_verify.check import REFUSED, Interval, Report, verify
from layerbounds_verify.exact import RefusedError

__all__ = ["REFUSED", "Interval", "RefusedError", "Report", "verify"]

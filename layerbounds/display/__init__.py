"""How results show themselves: in a few words, as HTML in notebooks, and as pictures."""

from layerbounds.display.displayed import Displayed
from layerbounds.display.pictures import picture
from layerbounds.display.views import INTERVAL, JOINT, METHOD, PRUNING, Bar, Shape, Summary, Table

__all__ = ["INTERVAL", "JOINT", "METHOD", "PRUNING", "Bar", "Displayed", "Shape", "Summary", "Table", "picture"]

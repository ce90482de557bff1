"""Methods that people use, behind one signature."""

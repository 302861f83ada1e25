"""What can be said about an artifact and proved: how it was built, what is in it, how it behaved; and who says so."""

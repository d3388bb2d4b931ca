"""Files that `glr-dist init` copies."""

"""Protocol definitions and the code generated from them; used by `glinthawk.wire` only."""

"""The gallery: one HTML page with all samples of an output folder, and what its pictures are."""

"""The demo world: where the embedded model comes from. Not imported by the package."""

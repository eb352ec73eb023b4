"""The command line of fourm."""

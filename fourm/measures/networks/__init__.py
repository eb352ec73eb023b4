"""The networks of measures of pictures, each with the parameter names of its public checkpoint."""

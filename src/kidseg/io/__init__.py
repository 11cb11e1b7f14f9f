"""Files in and out; see `kidseg.io.orientation` for the one place that knows axis orders."""

"""Pages for readers: the report of a scan, and the page of a cohort. One file each, no network."""

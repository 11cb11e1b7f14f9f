"""The digital patient: an abdomen from birth to 16 years, posed, rendered and scanned."""

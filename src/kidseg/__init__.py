"""kidseg: kidneys and renal tumours in CT, of children first. Research use only."""

"""The server: a REST interface, the protocol of MONAI Label, and a web page."""

"""PyPty's page of parameters, section by section."""

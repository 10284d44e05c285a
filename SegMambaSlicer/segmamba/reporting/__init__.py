"""What is shown of a result: the report, the preview, and the disclaimer that goes with both."""

DISCLAIMER = "Research software, not a medical device: do not use it for diagnosis or treatment."
# What pages of cases are made with: the names to install, and those to import.
PAGE_PACKAGES = {"jinja2": "jinja2", "contourpy": "contourpy", "pillow": "PIL"}

"""What is shown of a result: the report, the preview, and the disclaimer that goes with both."""

DISCLAIMER = "Research software, not a medical device: do not use it for diagnosis or treatment."

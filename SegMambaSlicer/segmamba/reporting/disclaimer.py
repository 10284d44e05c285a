"""What is said with every result."""

NOTICE = "Research software, not a medical device: do not use for diagnosis or treatment."

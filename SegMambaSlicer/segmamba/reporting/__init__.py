"""What is shown of a result: the report, the preview, the disclaimer."""

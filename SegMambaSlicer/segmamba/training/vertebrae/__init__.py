"""Training samples of vertebrae: label maps, synthetic images, shape model, validation."""

"""What the models of this project share."""

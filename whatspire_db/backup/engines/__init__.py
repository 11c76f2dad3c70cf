"""What differs between the engines for a backup."""

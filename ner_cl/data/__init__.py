"""Read, write and check sentences, split them into steps, and turn them into batches of word pieces."""

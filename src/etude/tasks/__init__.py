"""What is learned: a Task gives the loss, the measures, the report's pictures and the answer to a user's input."""

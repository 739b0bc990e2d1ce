"""What is learned: a Task gives the loss, the measures, the pictures for the report and the answer to a user's input."""

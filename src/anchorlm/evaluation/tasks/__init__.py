"""What is asked, and how an answer is graded: prompts, attacks, graders."""

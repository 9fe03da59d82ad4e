"""Network parts shared by teachers and students."""

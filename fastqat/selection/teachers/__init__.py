"""Where `TeacherCache` keeps logits."""

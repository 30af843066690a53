"""What references become: tokens, and what their grey values and pieces say beside these."""

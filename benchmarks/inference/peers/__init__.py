"""How each library is asked for a posterior: a file a library, which imports nothing that its environment lacks."""

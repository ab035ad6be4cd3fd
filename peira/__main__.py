from peira.cli import main

main()

# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_rclone_img_global_optspecs
    string join \n h/help V/version
end

function __fish_rclone_img_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_rclone_img_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_rclone_img_using_subcommand
    set -l cmd (__fish_rclone_img_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c rclone-img -n "__fish_rclone_img_needs_command" -s h -l help -d 'Print help'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -s V -l version -d 'Print version'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -f -a "snapshot" -d 'Make a reflink snapshot DST of the image SRC'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -f -a "resume" -d 'Go on with the interrupted job of DST'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -f -a "status" -d 'Show unfinished jobs, or how one snapshot stands'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -f -a "abort" -d 'Stop the job of DST and remove its partial file and journal'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -f -a "map" -d 'Show how fragmented a file is, and how long a clone of it takes here'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -f -a "check" -d 'Say which holds apply to the image SRC, and why not; of a directory, which images are in use unarmed'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -f -a "guard" -d 'Keep images armed, so that snapshots can later be made while their VMs run'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -f -a "serve" -d 'Give the image SRC to a VM over NBD'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -f -a "fleece" -d 'Read one instant of a served image over NBD, while only what is overwritten is kept'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -f -a "diff" -d 'Show what has changed between two snapshots, without reading data'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -f -a "verify" -d 'Say whether two files have the same bytes'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -f -a "restore" -d 'Roll the image IMG back to a snapshot, which costs what has changed since'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -f -a "rotate" -d 'Take a snapshot and remove those that are not wanted any more: for cron'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -f -a "list" -d 'Show the snapshots that there are, with their age and size'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -f -a "send" -d 'Send a snapshot, or what has changed in it, as a stream'
complete -c rclone-img -n "__fish_rclone_img_needs_command" -f -a "receive" -d 'Make a snapshot of a stream'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l chunk -d 'The most that one clone call covers, 4K to 1T in multiples of 4096 bytes' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l cluster -d 'The unit in which finished work is recorded, and the least that is cloned for a guest that waits; a power of two from 4K to 64M, at most --chunk [default: 64K; 8K under guard and filter, more where the image is larger than 512 GiB]' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l consistency -d 'How the point in time is kept: by one of the holds that \'snapshot --help\' tells of' -r -f -a "auto\t''
frozen\t''
guard\t''
filter\t''
atomic\t''
none\t''"
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l guest-deadline -d 'How long an access of the guest may wait for the holds guard and filter before the snapshot breaks, 100ms to 30s; the job lets it go after four fifths of that' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l qmp -d 'The socket of the QMP monitor of a QEMU that was started before \'rclone-img guard\': it is made to open its image anew, so that its accesses can be watched; may be given several times' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l qga -d 'The socket of the QEMU guest agent: the guest\'s file systems are frozen for the moment of the point in time; may be given once for each guest' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l freeze -d 'A command for /bin/sh that freezes what writes to the image for the moment of the point in time, with --thaw' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l thaw -d 'The command that thaws what --freeze has frozen; run whatever happens, also after a freeze that failed, and up to five times where it fails' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l freeze-timeout -d 'How long a freeze may take, and how long it may last until the point in time is set, 1s to 10m; after that the guest is thawed, and the snapshot is as after a power cut' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l latency -d 'What a clone call should take at most, 1ms to 10s: a target that calls are sized by, not a guarantee, as a call may have to wait for the file system; also what auto lets a single call for the whole image take [default: under the hold frozen 100ms, guard 1ms (Btrfs 1.5ms), filter and none 1ms; for that single call 5ms]' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l min-free -d 'Free space below which no job starts and a running one stops: 0% to 99%, or a size; on Btrfs the same part of what is for metadata as well' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l wait -d 'How long to wait for another job on the image or on DST, or for another rotate in the directory of the snapshots, 0s to 24h' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l metrics -d 'Write a Prometheus text file at the end, however the job ends' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l require-freeze -d 'No snapshot of an image in use unless its guest was frozen; one that nobody has open for writing needs no freeze'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l refresh -d 'Bring the older snapshot DST to a new point in time, cloning only what differs'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l restart -d 'Start over even if a partial file could be used'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l by-rules -d 'The snapshot is one of those that `rotate` keeps by its rules'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l force -d 'Replace an existing DST, and what stands in the way of the job at DST.partial and DST.journal'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l writable -d 'Give the snapshot write permission for its owner, and what others have on the image'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l dry-run -d 'Say what would be done; touch nothing'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -l json -d 'One JSON object a line on standard output'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -s q -l quiet -d 'Nothing but errors on standard error'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand snapshot" -s h -l help -d 'Print help'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand resume" -l latency -d 'What a clone call should take at most, 1ms to 10s: a target that calls are sized by, not a guarantee, as a call may have to wait for the file system; also what auto lets a single call for the whole image take [default: under the hold frozen 100ms, guard 1ms (Btrfs 1.5ms), filter and none 1ms; for that single call 5ms]' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand resume" -l min-free -d 'Free space below which no job starts and a running one stops: 0% to 99%, or a size; on Btrfs the same part of what is for metadata as well' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand resume" -l wait -d 'How long to wait for another job on the image or on DST, or for another rotate in the directory of the snapshots, 0s to 24h' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand resume" -l metrics -d 'Write a Prometheus text file at the end, however the job ends' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand resume" -l force -d 'Of a restore: take IMG.restore-source as it is now, also where it was changed or replaced'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand resume" -l json -d 'One JSON object a line on standard output'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand resume" -s q -l quiet -d 'Nothing but errors on standard error'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand resume" -s h -l help -d 'Print help'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand status" -l json -d 'One JSON object a job, one a line'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand status" -s h -l help -d 'Print help'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand abort" -l force -d 'Remove the partial file and the journal even if they cannot be recognised as ours'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand abort" -l json -d 'One JSON object a line on standard output'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand abort" -s q -l quiet -d 'Nothing but errors on standard error'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand abort" -s h -l help -d 'Print help'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand map" -l json -d 'One JSON object'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand map" -s h -l help -d 'Print help'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand check" -l json -d 'One JSON object; of a directory, one an image in use'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand check" -s h -l help -d 'Print help'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand guard" -l file-system -d 'Arm all files on the file system that PATH is on; may be given several times' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand guard" -l config -d 'Arm what this file names, one path a line' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand guard" -l json -d 'One JSON object a line on standard output'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand guard" -s q -l quiet -d 'Nothing but errors on standard error'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand guard" -s h -l help -d 'Print help'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand serve" -l socket -d 'The Unix socket that clients connect to; one that nobody listens to any more is replaced [default: the one that systemd hands over]' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand serve" -l cache -d 'How the image is read and written' -r -f -a "writeback\t'Through the page cache; a flush makes it last'
none\t'Past the page cache (O_DIRECT)'"
complete -c rclone-img -n "__fish_rclone_img_using_subcommand serve" -l connections -d 'The most clients at a time, 1 to 1024; one more is sent away' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand serve" -l read-only -d 'Clients cannot write'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand serve" -l json -d 'One JSON object a line on standard output'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand serve" -s q -l quiet -d 'Nothing but errors on standard error'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand serve" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and not __fish_seen_subcommand_from start stop list" -s h -l help -d 'Print help'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and not __fish_seen_subcommand_from start stop list" -f -a "start" -d 'Begin a fleece of the served image SRC'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and not __fish_seen_subcommand_from start stop list" -f -a "stop" -d 'End a fleece of SRC, with what it has kept'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and not __fish_seen_subcommand_from start stop list" -f -a "list" -d 'Show the fleeces of SRC'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from start" -l name -d 'Its name: at most 64 letters, digits, \'-\', \'_\' and \'.\'' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from start" -l sidecar -d 'The directory in which is kept what the guest overwrites; where it is on the image\'s file system blocks are shared, else they are copied [default: the image\'s]' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from start" -l base -d 'A finished snapshot of the image: only what has changed since is kept, and may be read' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from start" -l cluster -d 'The unit that is kept; a power of two from 4K to 64M' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from start" -l guest-deadline -d 'How long a write of the guest may wait for it, 100ms to 30s' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from start" -l on-cbw-error -d 'What happens where what the guest overwrites cannot be kept, or not in time' -r -f -a "break-snapshot\t'The guest\'s write goes on, and the fleece is lost'
break-guest-write\t'The guest\'s write fails, and the fleece stays whole'"
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from start" -l max-sidecar -d 'The most that is kept [default: as much as --min-free allows]' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from start" -l ram -d 'The most memory for what is copied and not on the sidecar\'s disk yet' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from start" -l min-free -d 'Free space, on the image\'s file system and on the sidecar\'s, below which the fleece is given up' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from start" -l durable -d 'What is kept is on the disk before the guest overwrites it, so that the fleece outlives a power cut while a server has it; each first write to a cluster takes as long as two syncs'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from start" -l json -d 'One JSON object a line on standard output'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from start" -s q -l quiet -d 'Nothing but errors on standard error'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from start" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from stop" -l name -d 'The fleece\'s name' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from stop" -l json -d 'One JSON object a line on standard output'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from stop" -s q -l quiet -d 'Nothing but errors on standard error'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from stop" -s h -l help -d 'Print help'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from list" -l json -d 'One JSON object a fleece, one a line'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand fleece; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand diff" -l format -d 'Another form on standard output' -r -f -a "qemu-map\t'As \'qemu-img map --output=json\' has it, of an overlay with the differences over OLD'"
complete -c rclone-img -n "__fish_rclone_img_using_subcommand diff" -l content -d 'Read what the maps do not prove, and leave out what has the same bytes'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand diff" -l exit-code -d 'Exit with 7 where there are differences'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand diff" -l json -d 'One JSON object a range, one a line, and one with the sums at the end'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand diff" -s q -l quiet -d 'Nothing on standard output: for --exit-code'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand diff" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand verify" -l json -d 'One JSON object on standard output'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand verify" -s q -l quiet -d 'Nothing but errors'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand verify" -s h -l help -d 'Print help'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand restore" -l keep-current -d 'First make this snapshot of what the image is now' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand restore" -l force -d 'Also where SNAP is of another image, was received, is not of one instant or no finished snapshot, and where IMG has several links or is mounted as a file'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand restore" -l json -d 'One JSON object a line on standard output'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand restore" -s q -l quiet -d 'Nothing but errors on standard error'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand restore" -s h -l help -d 'Print help'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l keep-last -d 'Keep the last N snapshots' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l keep-hourly -d 'Keep the most recent snapshot of each of the last N hours that have one' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l keep-daily -d 'The same of days' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l keep-weekly -d 'The same of weeks, from Monday on' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l keep-monthly -d 'The same of months' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l keep-yearly -d 'The same of years' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l chunk -d 'The most that one clone call covers, 4K to 1T in multiples of 4096 bytes' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l cluster -d 'The unit in which finished work is recorded, and the least that is cloned for a guest that waits; a power of two from 4K to 64M, at most --chunk [default: 64K; 8K under guard and filter, more where the image is larger than 512 GiB]' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l consistency -d 'How the point in time is kept: by one of the holds that \'snapshot --help\' tells of' -r -f -a "auto\t''
frozen\t''
guard\t''
filter\t''
atomic\t''
none\t''"
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l guest-deadline -d 'How long an access of the guest may wait for the holds guard and filter before the snapshot breaks, 100ms to 30s; the job lets it go after four fifths of that' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l qmp -d 'The socket of the QMP monitor of a QEMU that was started before \'rclone-img guard\': it is made to open its image anew, so that its accesses can be watched; may be given several times' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l qga -d 'The socket of the QEMU guest agent: the guest\'s file systems are frozen for the moment of the point in time; may be given once for each guest' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l freeze -d 'A command for /bin/sh that freezes what writes to the image for the moment of the point in time, with --thaw' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l thaw -d 'The command that thaws what --freeze has frozen; run whatever happens, also after a freeze that failed, and up to five times where it fails' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l freeze-timeout -d 'How long a freeze may take, and how long it may last until the point in time is set, 1s to 10m; after that the guest is thawed, and the snapshot is as after a power cut' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l latency -d 'What a clone call should take at most, 1ms to 10s: a target that calls are sized by, not a guarantee, as a call may have to wait for the file system; also what auto lets a single call for the whole image take [default: under the hold frozen 100ms, guard 1ms (Btrfs 1.5ms), filter and none 1ms; for that single call 5ms]' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l min-free -d 'Free space below which no job starts and a running one stops: 0% to 99%, or a size; on Btrfs the same part of what is for metadata as well' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l wait -d 'How long to wait for another job on the image or on DST, or for another rotate in the directory of the snapshots, 0s to 24h' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l metrics -d 'Write a Prometheus text file at the end, however the job ends' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l prune-only -d 'Take no snapshot: works on a full file system as well'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l recycle -d 'Leave the newest snapshot that no rule keeps for the next run, which makes it the new one, cloning only what differs'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l dry-run -d 'Say what would be taken, kept and removed; touch nothing'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l require-freeze -d 'No snapshot of an image in use unless its guest was frozen; one that nobody has open for writing needs no freeze'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -l json -d 'One JSON object a line on standard output'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -s q -l quiet -d 'Nothing but errors on standard error'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand rotate" -s h -l help -d 'Print help'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand list" -l json -d 'One JSON object a snapshot, one a line'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand list" -s h -l help -d 'Print help'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand send" -l from -d 'An earlier one: only what has changed since is sent' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand send" -s o -l output -d 'A new file for the stream [default: standard output]' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand send" -l bwlimit -d 'The most bytes a second, like 20M' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand send" -l checksum -d 'Write checksums of all records to STREAM.sums; there are none on a pipe'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand send" -l content -d 'Read what the block maps do not prove, and leave out what has the same bytes: for compressed files'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand send" -l json -d 'One JSON object on standard output at the end'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand send" -s q -l quiet -d 'Nothing but errors on standard error'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand send" -s h -l help -d 'Print help'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand receive" -l base -d 'The snapshot since which the stream has the changes, on the file system of NEW' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand receive" -s o -l output -d 'The new snapshot' -r -F
complete -c rclone-img -n "__fish_rclone_img_using_subcommand receive" -l min-free -d 'Free space below which nothing more is written: 0% to 99%, or a size' -r
complete -c rclone-img -n "__fish_rclone_img_using_subcommand receive" -l checksum -d 'Hold every record against STREAM.sums; there are none on a pipe'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand receive" -l json -d 'One JSON object on standard output at the end'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand receive" -s q -l quiet -d 'Nothing but errors on standard error'
complete -c rclone-img -n "__fish_rclone_img_using_subcommand receive" -s h -l help -d 'Print help'

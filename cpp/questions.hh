// Asking for what a store knows of many paths. A daemon is asked for the next ones before it has answered: one by one, most of the time
// is the way there and back. A store without a daemon is asked one by one, and so is a daemon whose answers have another form.
//
// Invariants:
// - Answers come in the order of the questions, as the protocol has it.
// - All questions without an answer fit into a socket's buffer. Otherwise we might wait for a daemon to read that waits for us to do so.
// - A connection is given back with each question answered, or closed. One that is closed takes its temporary roots with it: so an answer
//   that is an error is no reason for that.
#pragma once

#include "nix-compat.hh"

#include <algorithm>
#include <cstddef>
#include <exception>

namespace nix_store_fs {

// Lets RemoteStore's protected function be named.
struct Connections : nix::RemoteStore
{
    // Whoever holds a connection asks the store for nothing else: there may be no second one.
    static auto get(nix::RemoteStore & store)
    {
        return (store.*&Connections::getConnection)();
    }
};

// Calls `visit` with each of `members` and what the store knows of it, in their order. It may add members at the end, and must not ask the
// store. Ends with the first one that is not valid or that the daemon refuses to tell of.
template<class Members, class Visit>
void ask_daemon(nix::RemoteStore & store, const Members & members, Visit && visit)
{
    // Bytes: a twelfth of what Linux gives a socket, and it counts its own records as well.
    constexpr size_t buffer = 16384;
    // The longest question: its number, the length of the text, and a name of 211 characters after the directory.
    const size_t window = std::max<size_t>(buffer / (store.storeDir.size() + 256), 1);

    std::exception_ptr failed;
    {
        auto connection = Connections::get(store);
        try {
            size_t asked = 0;
            for (size_t next = 0; next < (failed ? asked : members.size()); next++) {
                // Many at once: each time costs a call, and may wake the daemon.
                if (!failed && asked - next <= window / 2) {
                    for (; asked < std::min(members.size(), next + window); asked++)
                        connection->to << nix::WorkerProto::Op::QueryPathInfo << store.printStorePath(members[asked]);
                    connection->to.flush();
                }
                if (auto refused = connection->processStderrReturn(nullptr, nullptr, false)) {
                    if (!failed)
                        failed = refused;
                } else if (!nix::readInt(connection->from)) {
                    if (!failed)
                        failed = std::make_exception_ptr(
                            nix::InvalidPath("path '%s' is not valid", store.printStorePath(members[next])));
                } else {
                    auto facts = nix::WorkerProto::Serialise<nix::UnkeyedValidPathInfo>::read(store, *connection);
                    if (!failed)
                        visit(members[next], facts);
                }
            }
        } catch (...) {
            // What is read next may be the rest of an answer.
            connection.handle.markBad();
            if (!failed)
                throw;
        }
    }
    if (failed)
        std::rethrow_exception(failed);
}

// The same for any store.
template<class Members, class Visit>
void ask(nix::Store & store, const Members & members, Visit && visit)
{
    // From 1.17 on an answer says first whether the path is valid.
    if (auto daemon = dynamic_cast<nix::RemoteStore *>(&store); daemon && (daemon->getProtocol() & 0xff) >= 17)
        return ask_daemon(*daemon, members, visit);
    for (size_t next = 0; next < members.size(); next++)
        visit(members[next], static_cast<const nix::UnkeyedValidPathInfo &>(*store.queryPathInfo(members[next])));
}

} // namespace nix_store_fs

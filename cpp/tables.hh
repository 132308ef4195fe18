// Nix's own tables, asked and filled by statements of ours: where Nix's library would ask or write path by path.
//
// Invariants:
// - Tables with other columns than those that we know (schema 10) are Nix's to read and to write.
// - To read changes nothing, makes no file, and never waits for somebody who writes. Nix has the database open meanwhile, so the files
//   beside it that a connection needs are there, and stay.
#pragma once

#include "nix-compat.hh"

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace nix_store_fs {

// All answers of a statement whose answers are a text each.
inline std::vector<std::string> texts(nix::SQLite & db, const std::string & sql)
{
    std::vector<std::string> answers;
    nix::SQLiteStmt statement(db, sql);
    auto use = statement.use();
    while (use.next())
        answers.push_back(use.getStr(0));
    return answers;
}

inline bool has_known_tables(nix::SQLite & db)
{
    auto columns = [&](const std::string & table) {
        std::string all;
        for (auto & name : texts(db, "select name from pragma_table_info('" + table + "') order by cid"))
            all.append(name).append(1, ' ');
        return all;
    };
    return columns("ValidPaths") == "id path hash registrationTime deriver narSize ultimate sigs ca "
        && columns("Refs") == "referrer reference ";
}

// Calls `visit` with each path of the closure of `roots` and its NAR size, once and in no order; a root that is not valid is left out.
// One statement, so all of it was so at one moment. Throws where it cannot, and then what `visit` got may be a part.
template<class Visit>
void read_sizes(nix::LocalStore & store, const std::vector<nix::StorePath> & roots, Visit && visit)
{
    auto db = compat::open_database(compat::str(store.dbDir) + "/db.sqlite", compat::is_read_only(store));
    // None of these looks into the database. Nix itself has its connections wait for an hour.
    db.exec("pragma busy_timeout = 0");
    db.exec("pragma query_only = 1");
    // A closure of many thousands would get a file.
    db.exec("pragma temp_store = memory");
    if (!has_known_tables(db))
        throw std::runtime_error("its tables have other columns");

    std::string places;
    for (size_t n = 0; n < roots.size(); n++)
        places.append(n ? ", ?" : "?");
    // A cross join is what SQLite calls one whose order it keeps. A reference to what is not valid is none, as for Nix.
    nix::SQLiteStmt statement(
        db,
        "with recursive members (id) as ("
        "select id from ValidPaths where path in (" + places + ") "
        "union select reference from members cross join Refs on referrer = members.id) "
        "select path, narSize from members cross join ValidPaths on ValidPaths.id = members.id");
    auto use = statement.use();
    for (auto & root : roots)
        compat::bind(use, store.printStorePath(root));
    const auto directory = store.storeDir + "/";
    while (use.next()) {
        // Nix's class asserts that there is a text, and Nix's function for a whole path that it is not empty.
        auto path = use.isNull(0) ? std::string() : use.getStr(0);
        if (!path.starts_with(directory))
            throw std::runtime_error("'" + path + "' is not in the store");
        visit(nix::StorePath(std::string_view(path).substr(directory.size())), static_cast<uint64_t>(use.getInt(1)));
    }
}

} // namespace nix_store_fs
